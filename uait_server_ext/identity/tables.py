"""Tables of people and of what proves who they are.

Times are seconds since the epoch (UTC). A credential is kept as its SHA-256 only; what must be read
back (a TOTP seed, a signing key) is sealed under the master key (`storage/sealing.py`).
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
)

from uait_server_ext.storage.database import metadata

users = Table(
    "users",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("username", String(64), nullable=False),
    Column("username_key", String(64), nullable=False, unique=True),  # NFKC, case-folded
    Column("display_name", String(128), nullable=False),
    Column("email", String(254)),
    Column("email_verified", Boolean, nullable=False, default=False),
    Column("password_hash", Text),  # none: this person logs in by OIDC or passkey only
    Column("created_at", Float, nullable=False),
    Column("disabled_at", Float),
    # Raised when everything that the person holds must end: sessions and tokens carry it.
    Column("epoch", Integer, nullable=False, default=0),
)

groups = Table(
    "groups",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
)

group_members = Table(
    "group_members",
    metadata,
    Column("group_name", ForeignKey("groups.name", ondelete="CASCADE"), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
)

role_grants = Table(
    "role_grants",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("role", String(32), nullable=False),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE")),
    Column("group_name", ForeignKey("groups.name", ondelete="CASCADE")),
)
Index("ix_role_grants_user", role_grants.c.user_id)

links = Table(  # one-time links: first setup, invitation, password reset
    "links",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column("purpose", String(16), nullable=False),  # setup | invitation | reset
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE")),
    Column("role", String(32)),
    Column("created_by", String(40)),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column("id", String(40), nullable=False, unique=True),  # what people see and revoke
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_seen_at", Float, nullable=False),
    Column("authenticated_at", Float, nullable=False),  # the last full proof, for step-up
    Column("factors", String(64), nullable=False),  # "password", "password totp", "passkey", "oidc"
    Column("pending", Boolean, nullable=False),  # the second factor is still to come
    Column("expires_at", Float, nullable=False),
    Column("address", String(64), nullable=False),
    Column("user_agent", String(200), nullable=False),
)
Index("ix_sessions_user", sessions.c.user_id)

attempts = Table(  # failed logins, for the lock-out
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("subject", String(120), nullable=False),  # see throttle.py
    Column("at", Float, nullable=False),
)
Index("ix_attempts_subject", attempts.c.subject, attempts.c.at)
Index("ix_attempts_at", attempts.c.at)

known_browsers = Table(  # in which a person has logged in: their own count in the lock-out
    "known_browsers",
    metadata,
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("binding_sha256", String(64), primary_key=True),
    Column("seen_at", Float, nullable=False),
)

external_accounts = Table(
    "external_accounts",
    metadata,
    Column("issuer", String(200), primary_key=True),
    Column("subject", String(200), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("label", String(200), nullable=False),
    Column("linked_at", Float, nullable=False),
)

login_flows = Table(  # an OIDC or passkey ceremony between its two halves; used once
    "login_flows",
    metadata,
    Column("state_sha256", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("binding_sha256", String(64), nullable=False),  # the browser that began it
    Column("data", Text, nullable=False),  # JSON
    Column("expires_at", Float, nullable=False),
)

totp_devices = Table(
    "totp_devices",
    metadata,
    Column("id", String(40), primary_key=True),  # the seed is sealed under `totp:<id>`
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("confirmed_at", Float),
    Column("created_at", Float, nullable=False),
    Column("last_counter", Integer, nullable=False, default=-1),
)

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("code_sha256", String(64), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("used_at", Float),
)

passkeys = Table(
    "passkeys",
    metadata,
    Column("credential_id", String(400), primary_key=True),  # base64url
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("sign_count", Integer, nullable=False),
    Column("transports", String(100), nullable=False),
    Column("name", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_used_at", Float),
)

signing_keys = Table(  # the private half is sealed under `jwt:<kid>`
    "signing_keys",
    metadata,
    Column("kid", String(40), primary_key=True),
    Column("public_jwk", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("retired_at", Float),  # signs no more
    Column("expires_at", Float),  # verifies no more: end of its grace
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column("family", String(40), nullable=False),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("scope", Text, nullable=False),
    Column("client", String(100), nullable=False),
    Column("authenticated_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),  # of this token: idle limit
    Column("family_expires_at", Float, nullable=False),  # absolute limit
    Column("used_at", Float),
    Column("revoked_at", Float),
    Column("access_jti", String(40), nullable=False),  # of the access token that came with it
)
Index("ix_refresh_tokens_family", refresh_tokens.c.family)
Index("ix_refresh_tokens_user", refresh_tokens.c.user_id)

revoked_tokens = Table(  # access tokens that end before their time; kept until it has come
    "revoked_tokens",
    metadata,
    Column("jti", String(40), primary_key=True),
    Column("expires_at", Float, nullable=False),
)

device_codes = Table(  # RFC 8628
    "device_codes",
    metadata,
    Column("device_sha256", String(64), primary_key=True),
    Column("user_code", String(16), nullable=False, unique=True),
    Column("client", String(100), nullable=False),
    Column("scope", Text, nullable=False),
    Column("address", String(64), nullable=False),  # that asked
    Column("expires_at", Float, nullable=False),
    Column("interval_seconds", Integer, nullable=False),  # grows when it is asked too often
    Column("last_poll_at", Float),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE")),
    Column("epoch", Integer),
    Column("authenticated_at", Float),
    Column("decision", String(8)),  # approved | denied
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("prefix", String(16), nullable=False),  # the shown beginning
    Column("name", String(64), nullable=False),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("scope", Text, nullable=False),  # permissions, space-separated
    Column("routes", Text, nullable=False),  # "METHOD /path" patterns, one a line; empty: all
    Column("networks", Text, nullable=False),  # CIDR, one a line; empty: any
    Column("signing_secret", Boolean, nullable=False, default=False),  # sealed: `signing:<id>`
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("last_used_at", Float),
    Column("revoked_at", Float),
)

nonces = Table(  # used once: request signatures, kernel proofs
    "nonces",
    metadata,
    Column("subject", String(80), primary_key=True),
    Column("nonce", String(80), primary_key=True),
    Column("expires_at", Float, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("principal", String(80), primary_key=True),
    Column("key", String(100), primary_key=True),
    Column("request_sha256", String(64), nullable=False),
    Column("status", Integer),  # none: still running
    Column("content_type", String(100)),
    Column("body", LargeBinary),
    Column("created_at", Float, nullable=False),
)
