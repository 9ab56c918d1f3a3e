"""What people look at: pictures, the report, exported models and the widgets."""
