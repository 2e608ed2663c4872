"""What a training run says to its user in one sentence."""


class UserError(ValueError):
    """Input, a folder or a checkpoint that cannot be used: the message says what, where and what was expected."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C or SIGTERM) and has saved its state; the message says how to go on."""
