"""Tenants: names are unique within one, and subscriptions are found by tenant and pattern.

The function makes the keys of the index that publishing reads: each pattern behind its tenant and a
tab, so that a publisher reads nothing of other tenants, however many have the same patterns. The
application's own patterns stand alone; those for all tenants have a second key, behind a tab. No
tenant and no pattern holds a tab. A text that is longer than any pattern matches nothing, and makes
no key.
"""

from typing import ClassVar

from django.db import migrations, models
from django.db.models import Q

import subscriptions.validators

KEYS = r"""
CREATE FUNCTION subscriptions_topic_keys(tenant text, all_tenants boolean, patterns jsonb)
RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY(
        SELECT place || text FROM (
            SELECT pattern #>> '{}' AS text FROM jsonb_array_elements(patterns) AS pattern
            WHERE jsonb_typeof(pattern) = 'string'
        ) AS stored
        CROSS JOIN unnest(
            CASE WHEN tenant <> '' THEN ARRAY[tenant || E'\t']
                WHEN all_tenants THEN ARRAY['', E'\t']
                ELSE ARRAY[''] END
        ) AS place
        WHERE length(text) <= 255
    )
$$;
"""
NO_KEYS = "DROP FUNCTION subscriptions_topic_keys(text, boolean, jsonb)"


class Migration(migrations.Migration):
    dependencies: ClassVar = [("subscriptions", "0006_patterns_index")]

    operations: ClassVar = [
        migrations.AddField(
            model_name="subscription",
            name="tenant",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Whose subscription this is, for good; empty for the application itself.",
                max_length=64,
                validators=[subscriptions.validators.validate_tenant_name],
            ),
        ),
        migrations.AddField(
            model_name="subscription",
            name="all_tenants",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Send it the events of every tenant: for the application's own only.",
            ),
        ),
        migrations.AlterField(
            model_name="subscription",
            name="name",
            field=models.CharField(
                help_text="A name for operators and commands, unique within its tenant.",
                max_length=200,
                validators=[subscriptions.validators.validate_name],
            ),
        ),
        migrations.AlterModelOptions(name="subscription", options={"ordering": ["tenant", "name"]}),
        migrations.AddConstraint(
            model_name="subscription",
            constraint=models.UniqueConstraint(
                fields=("tenant", "name"),
                name="subscription_name_in_tenant",
                violation_error_code="unique",
                violation_error_message="The tenant has a subscription with this name already.",
            ),
        ),
        migrations.AddConstraint(
            model_name="subscription",
            constraint=models.CheckConstraint(
                condition=Q(("all_tenants", False), ("tenant", ""), _connector="OR"),
                name="subscription_for_all_tenants_is_the_applications",
                violation_error_code="all_tenants",
                violation_error_message="Only a subscription of the application itself, whose "
                "tenant is empty, can be for all tenants.",
            ),
        ),
        migrations.RunSQL(KEYS, NO_KEYS),
    ]
