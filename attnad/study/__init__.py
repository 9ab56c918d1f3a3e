"""Studies: the paper's tables run again, and the speed of training and scoring."""
