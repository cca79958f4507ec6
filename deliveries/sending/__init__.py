"""Sent: signed requests go out, a bounded number for each subscription.

`sender.Sender` owns the lanes of a worker process and pulls the other stages: it is given claimed
lanes, submits requests to the transport, has the answers judged and the results settled. `lane`
decides, as values, what is sent next and when a lane is over. `request` and `signing` make the
request. `send_test` sends one test event beside all that; `pools` refuses a Celery pool that
cannot send.

May import every room below it (`claiming`, `settling`, `judging`, `transport`, `waking`); only
`tasks`, `admin` and `management` import it.

Promises: all that happens to a lane happens on the transport's thread; no database connection is
held for a request in flight; no request begins that could outlive its lease; a stopped worker
gives back what it has not sent.
"""
