"""Notices: people are told of a trip, a recovery, a first sign, and of what they should know of.

A notice is an entry of the audit that is to be told (`notify_at`). It is written in the transaction
of what it tells of, so the two are there or neither is; `prompting` sends a task after the commit,
and the sweep sends it again if that was lost. `telling` claims entries and hands them to the
channels; `wording` makes events and e-mails of them; `watching` finds what is told because time has
passed.

May import `publishing`, `monitoring`, `waking` and `subscriptions`.

Promises: many workers tell a notice once; what one channel cannot take is tried again, ever later,
and holds up no other notice and no other channel; an event never reaches the subscription that it
is about; events about subscriptions that listen to such events cannot go round in a circle.
"""
