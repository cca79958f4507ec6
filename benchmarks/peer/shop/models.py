from django.db import models


class Order(models.Model):
    """What the webhooks are about. Its fields are those of the payload on the other side."""

    number = models.CharField(max_length=50)
    customer = models.CharField(max_length=100)
    note = models.CharField(max_length=200)
