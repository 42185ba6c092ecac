"""The API is what /openapi.json says: schemathesis makes requests of every kind from it."""

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pipeline.serving.openapi import openapi
from pipeline.serving.upload import Limits
from tests.helpers.serving import Served

pytest_plugins = ["tests.helpers.serving"]

DESCRIPTION = openapi(Limits())


@schemathesis.openapi.from_dict(DESCRIPTION).parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_described(case: schemathesis.Case, served: Served) -> None:
    # A random image cannot be decoded, however well it fits the description.
    case.call_and_validate(base_url=served.url, excluded_checks=[positive_data_acceptance])


def test_the_served_description_is_this_one(served: Served) -> None:
    assert served.client.get("/openapi.json").json() == DESCRIPTION
