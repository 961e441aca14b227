"""What can go wrong in a run, noticed."""
