"""A receiver of webhooks on this machine, for development, demonstrations, tests and benchmarks.

`Receiver` serves in a thread, verifies signatures and can fail on demand; `manage.py receiver`
runs it for people. `recording` is a process that notes each request, for the benchmarks. Both
stand on `http`. May import `deliveries.sending.signing` and `subscriptions`; nothing that is
installed with the packages may import it.
"""

from webhooks_project.receiver.http import Answer
from webhooks_project.receiver.receiver import Received, Receiver, accept

__all__ = ["Answer", "Received", "Receiver", "accept"]
