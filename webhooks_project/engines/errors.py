"""The one exception that the embedded engines raise."""


class EngineError(Exception):
    """An embedded engine could not be started; the message says why and what to do."""
