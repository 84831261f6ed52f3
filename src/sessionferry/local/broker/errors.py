"""What the broker answers when it refuses something.

ServiceError            an AMQP error condition for the client
+- LockLostError        the lock token is unknown or its time is over
+- NotFoundError        the entity does not exist
+- UnauthorizedError    the connection holds no token with the right asked for
DefinitionError         the queue file cannot be used (ValueError)
DecodeError             bytes that are not AMQP (ValueError)
"""


class ServiceError(Exception):
    """A refusal in the service's own vocabulary; `status` is its HTTP-like management code."""

    def __init__(self, condition: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.condition = condition
        self.description = description
        self.status = status


class LockLostError(ServiceError):
    """The message's lock expired, or the message was settled already."""

    def __init__(self) -> None:
        super().__init__(
            "com.microsoft:message-lock-lost",
            "The lock supplied is invalid. Either the lock expired, or the message has already "
            "been removed from the queue.",
            410,
        )


class NotFoundError(ServiceError):
    """There is no such queue."""

    def __init__(self, path: str) -> None:
        super().__init__(
            "amqp:not-found", f"The messaging entity '{path}' could not be found.", 404
        )


class UnauthorizedError(ServiceError):
    """No valid token on this connection grants the right."""

    def __init__(self, right: str, path: str) -> None:
        super().__init__(
            "amqp:unauthorized-access",
            f"Unauthorized access. '{right.capitalize()}' claim(s) are required to perform this "
            f"operation. Resource: '{path}'.",
            401,
        )


class DefinitionError(ValueError):
    """The queue definitions are not usable."""


class DecodeError(ValueError):
    """The bytes are not well-formed AMQP."""
