"""Is it right, is it fast. Called, it is the API's function of the same name."""

from erq_export.contract.callable import make_callable

make_callable(__name__, "erq_export.flow.api:validate")
