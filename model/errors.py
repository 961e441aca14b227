"""The one exception for what a user did wrong."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence that names the key or file and the way out.

    Commands print it as one line and exit with code 2; anything else that is raised is a defect
    of the program and keeps its traceback.
    """
