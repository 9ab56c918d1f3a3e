"""What every training loop needs: states to resume from, files that a kill leaves whole, captured steps, machine."""
