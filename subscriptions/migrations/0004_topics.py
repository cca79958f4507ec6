"""Topics are matched by an index of the patterns; nothing else has to follow a change of them.

`fastupdate` is off: a publisher must not search a list of pending entries.
"""

from importlib import import_module
from typing import ClassVar

import django.contrib.postgres.indexes
from django.db import migrations

import subscriptions.topics.fields
import subscriptions.validators

old = import_module("subscriptions.migrations.0002_topic_index")

# What was no list matched nothing. It becomes a list with itself in it: a text then is the one
# pattern that it was meant to be.
LISTS = """
UPDATE subscriptions_subscription SET topic_patterns = jsonb_build_array(topic_patterns)
WHERE jsonb_typeof(topic_patterns) <> 'array';
ALTER TABLE subscriptions_subscription ADD CONSTRAINT subscription_patterns_are_a_list
    CHECK (jsonb_typeof(topic_patterns) = 'array');
"""
NO_LISTS = "ALTER TABLE subscriptions_subscription DROP CONSTRAINT subscription_patterns_are_a_list"


class Migration(migrations.Migration):
    dependencies: ClassVar = [("subscriptions", "0003_circuit")]

    operations: ClassVar = [
        migrations.RunSQL(old.BACKWARD, old.FORWARD),
        migrations.DeleteModel(name="TopicIndexChange"),
        migrations.DeleteModel(name="TopicIndexVersion"),
        migrations.RunSQL(LISTS, NO_LISTS),
        migrations.AlterField(
            model_name="subscription",
            name="topic_patterns",
            field=subscriptions.topics.fields.TopicPatternsField(
                default=list,
                help_text='A list such as ["order.*", "attacker.>"]: `*` is one token, `>` the rest.',
                validators=[subscriptions.validators.validate_patterns],
            ),
        ),
        migrations.AddIndex(
            model_name="subscription",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["topic_patterns"], name="subscription_topics", fastupdate=False
            ),
        ),
    ]
