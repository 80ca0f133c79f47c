"""What of the server's environment a kernel sees: a list of what it may, never a secret.

A variable passes when its name is on the list and does not look like a secret, or when whoever
starts the kernel adds it for this kernel. `UaitApp.kernel_environment` names more. Credentials in
the address of a proxy or package index are cut out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase

OWN_PREFIX = "UAIT_"
"""Settings and secrets of the server itself: no list can let them through."""

SECRETS = """
APIKEY AUTH BEARER COOKIE CREDENTIAL CREDENTIALS CREDS DSN JWT KEY KEYS MACAROON PASS PASSPHRASE
PASSWD PASSWORD PASSWORDS PAT PRIVATE PWD SALT SECRET SECRETS SIGNATURE TOKEN TOKENS
"""
LISTED = """
PATH HOME USER LOGNAME USERNAME SHELL PWD HOSTNAME LANG LANGUAGE TZ TERM COLORTERM DISPLAY
WAYLAND_DISPLAY TMPDIR TMP TEMP EDITOR VISUAL PAGER BROWSER NO_COLOR FORCE_COLOR SOURCE_DATE_EPOCH
IPYTHONDIR VIRTUAL_ENV LD_LIBRARY_PATH LD_PRELOAD LIBRARY_PATH CPATH PKG_CONFIG_PATH MANPATH CC CXX
CFLAGS CXXFLAGS LDFLAGS MACOSX_DEPLOYMENT_TARGET NODE_PATH TOKENIZERS_PARALLELISM
HTTP_PROXY HTTPS_PROXY ALL_PROXY FTP_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE
CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS GIT_SSL_CAINFO AWS_REGION AWS_DEFAULT_REGION AWS_PROFILE
AWS_CONFIG_FILE
SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT USERPROFILE USERDOMAIN APPDATA LOCALAPPDATA
PROGRAMDATA HOMEDRIVE HOMEPATH ALLUSERSPROFILE PUBLIC OS NUMBER_OF_PROCESSORS
"""
LISTED_BEGINNINGS = """
LC_ XDG_ DYLD_ JPY_ JUPYTER_ JUPYTERHUB_ KERNEL_ PROGRAMFILES COMMONPROGRAM PROCESSOR_
PYTHON CONDA MAMBA PYENV UV_ PIP_ COVERAGE_ MPL QT_ OMP_ KMP_ GOMP_ MKL_ OPENBLAS_ BLIS_ GOTO_
VECLIB_ NUMEXPR_ NUMBA_ CUDA NVIDIA_ NCCL_ ROCM HIP_ HSA_ MLX_ XLA_ JAX_ TF_ TORCH PYTORCH_ TRITON_
HF_ TRANSFORMERS_ DASK_ RAY_ SPARK_ PYSPARK_ HADOOP_ JAVA_ R_ JULIA_ GDAL_ PROJ_
"""
SECRET_WORDS = frozenset(SECRETS.split())
SECRET_ENDS = ("APIKEY", "CREDENTIALS", "PASSPHRASE", "PASSWD", "PASSWORD", "SECRET", "TOKEN")
FOLDERS = frozenset({"PWD", "OLDPWD"})
NAMES = frozenset(LISTED.split())
BEGINNINGS = tuple(LISTED_BEGINNINGS.split())
USER_INFO = re.compile(r"(?<=://)[^/\s]+@|^[^/\s:]+:[^/\s]*@")


def looks_secret(name: str) -> bool:
    """Tell whether a variable's name says that its value is a credential."""
    upper = name.upper()
    if upper in FOLDERS:
        return False
    words = re.split(r"[^A-Z0-9]+", upper)
    return upper.startswith(OWN_PREFIX) or any(
        word in SECRET_WORDS or word.endswith(SECRET_ENDS) for word in words
    )


class KernelEnvironment:
    """Chooses what a kernel sees.

    Args:
        extra: further names that may pass. A pattern like `SPARK_*` lets no name through that
            looks like a secret; such a name has to be written out.
        server: the server's own environment; where a test says nothing, that of this process.
    """

    def __init__(
        self,
        extra: Iterable[str] = (),
        *,
        server: Callable[[], Mapping[str, str]] = lambda: os.environ,
    ) -> None:
        names = [name.strip().upper() for name in extra]
        self.patterns = tuple(name for name in names if "*" in name)
        self.names = frozenset(names) - set(self.patterns)
        self.server = server

    def allows(self, name: str) -> bool:
        """Tell whether a variable of the server's environment may pass."""
        upper = name.upper()
        if upper.startswith(OWN_PREFIX):
            return False
        if upper in self.names:
            return True
        if looks_secret(upper):
            return False
        return (
            upper in NAMES
            or upper.startswith(BEGINNINGS)
            or any(fnmatchcase(upper, pattern) for pattern in self.patterns)
        )

    def clean(self, environment: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what a starter may hand to a kernel, of the environment that it gave.

        A variable that the server's own environment does not have was added for this kernel: it
        passes unless it looks like a secret, which it may be a stale copy of.
        """
        server = self.server()
        return {
            name: without_credentials(value)
            for name, value in (server if environment is None else environment).items()
            if self.allows(name) or (name not in server and not looks_secret(name))
        }

    def at_launch(
        self, environment: Mapping[str, str] | None, own: Collection[str] = ()
    ) -> dict[str, str]:
        """Return the environment with which a kernel's process begins.

        What a kernel's specification (`own`) or its provisioner adds is theirs and passes; what a
        provisioner took from the server's environment by itself does not.
        """
        if environment is None:
            return self.clean()
        server = self.server()
        return {
            name: value
            for name, value in environment.items()
            if self.allows(name) or name in own or name not in server
        }


def without_credentials(value: str) -> str:
    """Cut the user name and password out of every address in a value."""
    return USER_INFO.sub("", value)
