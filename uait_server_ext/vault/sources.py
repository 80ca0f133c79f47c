"""Other vaults: a secret here may be a reference to a value that stays there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import SecretStr

from uait_server_ext.errors import NotFound, Unavailable
from uait_server_ext.storage.key_sources import vault_client

TIMEOUT_SECONDS = 5.0


class SecretSource(Protocol):
    """Reads values that another system keeps."""

    async def read(self, path: str, key: str) -> SecretStr:
        """Return one field of the secret at a path.

        Raises:
            NotFound: it has none there.
            Unavailable: it does not answer, or not to us.
        """


@dataclass(frozen=True)
class KeyValueSource:
    """The KV engine, version 2, of OpenBao or HashiCorp Vault; read through, nothing is kept.

    Attributes:
        address: `https://host:8200`.
        token: may read the paths that secrets refer to, and no more.
        namespace: of OpenBao or Vault Enterprise.
    """

    address: str
    token: str = field(repr=False)
    namespace: str | None = None
    timeout: float = TIMEOUT_SECONDS

    async def read(self, path: str, key: str) -> SecretStr:
        """Return one field of the newest version at `mount/path`."""
        data = await asyncio.to_thread(self._read, path)
        value = data.get(key)
        if not isinstance(value, str):
            raise NotFound(
                f"{self.address} has no text field {key} at {path}. Correct the reference."
            )
        return SecretStr(value)

    def _read(self, path: str) -> dict[str, Any]:
        mount, _, rest = path.partition("/")
        client = vault_client(self.address, self.token, self.timeout, self.namespace)
        import hvac
        import requests

        try:
            answer = client.secrets.kv.v2.read_secret_version(
                path=rest, mount_point=mount, raise_on_deleted_version=True
            )
            data: dict[str, Any] = answer["data"]["data"]
        except hvac.exceptions.InvalidPath:
            raise NotFound(
                f"{self.address} has nothing at {path}. Correct the reference."
            ) from None
        except (hvac.exceptions.VaultError, requests.RequestException) as error:
            raise Unavailable(
                f"{self.address} did not give the secret ({type(error).__name__}). Check that it "
                "is reachable and unsealed, and what its token may read."
            ) from None
        except (KeyError, TypeError, ValueError):
            raise Unavailable(
                f"{self.address} answered something else than a secret. Check the address."
            ) from None
        finally:
            client.adapter.close()
        return data if isinstance(data, dict) else {}
