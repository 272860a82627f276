"""What the ODE is: noise levels, grids, predictions, conditions, the field itself."""
