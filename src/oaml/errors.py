"""The one error that bad input raises."""


class OamlError(Exception):
    """Bad input: a single line that names the file or value, what is wrong with it and what to do.

    The command line prints it and exits with 1; everything else that escapes is a defect of the program.
    """
