"""Sessions in the control group, the pulse that keeps them alive, and who leads."""
