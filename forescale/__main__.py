"""`python -m forescale`: the command line."""

from launch.entry import enter

enter()
