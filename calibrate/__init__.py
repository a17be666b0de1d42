"""Find the integers: ERQ and its peers, from streamed moments. Called, it is the API's function of the same name."""

from erq_export.contract.callable import make_callable

make_callable(__name__, "erq_export.flow.api:calibrate")
