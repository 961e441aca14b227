"""Reading tables as people have them: what a time, a number and a series are."""
