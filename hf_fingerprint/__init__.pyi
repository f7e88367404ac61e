from .blackbox import QueryResult as QueryResult
from .blackbox import make_trigger_set as make_trigger_set
from .blackbox import query as query
from .config import FingerprintConfig as FingerprintConfig
from .errors import FingerprintError as FingerprintError
from .issuing import IssuedCopy as IssuedCopy
from .issuing import Issuer as Issuer
from .issuing import issue as issue
from .registration import register as register
from .tracing import RecipientScore as RecipientScore
from .tracing import TraceResult as TraceResult
from .tracing import trace as trace
from .tracing import verify as verify
from .vault import Vault as Vault

__version__: str
