"""The service against its own contract: requests made from openapi.yaml, answers checked by it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from benchmarks.strangers import CHECKS, CONTRACT

SLOW_FIXTURES = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


# The committed contract; that it is the one in force is test_openapi's business.
schema = schemathesis.openapi.from_path(CONTRACT)


def call(case, locked_live):
    service, key = locked_live
    headers = {"Authorization": f"Bearer {key}"}
    case.call_and_validate(base_url=service.url, headers=headers, checks=CHECKS)


@schema.parametrize()
@settings(max_examples=5, deadline=None, suppress_health_check=SLOW_FIXTURES)
def test_no_request_gets_an_answer_that_the_contract_does_not_name(case, locked_live):
    call(case, locked_live)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=300, deadline=None, suppress_health_check=SLOW_FIXTURES)
def test_many_requests_get_no_answer_that_the_contract_does_not_name(case, locked_live):
    call(case, locked_live)


@schema.parametrize()
@settings(max_examples=2, deadline=None, suppress_health_check=SLOW_FIXTURES)
def test_the_contract_holds_for_those_without_a_key_too(case, locked_live):
    service, _ = locked_live
    case.call_and_validate(base_url=service.url, checks=CHECKS)
