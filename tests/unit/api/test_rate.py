"""Who a request counts against, and what the client is told."""

from __future__ import annotations

from uait_server_ext.api.rate import rate_headers, rate_subjects, refusal_headers
from uait_server_ext.errors import Busy
from uait_server_ext.identity.principal import Principal
from uait_server_ext.resilience.limits import Allowance

KEY = Principal("usr_1", "ada (ci)", kind="api-key", credential="key_1")


def test_a_request_counts_against_its_address_user_and_key() -> None:
    assert rate_subjects(None, "192.0.2.1") == ["ip:192.0.2.1"]
    person = Principal("usr_1", "ada", credential="ses_1")
    assert rate_subjects(person, "192.0.2.1") == ["ip:192.0.2.1", "user:usr_1"]
    assert rate_subjects(KEY, "::1") == ["ip:::/64", "user:usr_1", "key:key_1"]


def test_the_headers_say_what_is_left() -> None:
    headers = rate_headers("read", Allowance(100, 42, 17))
    assert headers == {
        "RateLimit-Limit": "100",
        "RateLimit-Remaining": "42",
        "RateLimit-Reset": "17",
        "RateLimit": '"read";r=42;t=17',
        "RateLimit-Policy": '"read";q=100;w=60',
    }


def test_a_refusal_says_when_to_come_back() -> None:
    headers = refusal_headers("read", Busy("too many", retry_after=9, limit=5, window=60))
    assert headers["Retry-After"] == "9"
    assert headers["RateLimit"] == '"read";r=0;t=9'


def test_a_full_queue_is_not_a_rate_limit() -> None:
    assert refusal_headers("read", Busy("queue", retry_after=2)) == {"Retry-After": "2"}
    assert refusal_headers("read", Busy("queue")) == {}
