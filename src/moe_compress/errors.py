"""The exception tree: every message names the value, the place and the next step, in one sentence."""


class MoeCompressError(Exception):
    """Root of every error a user can cause and mend; the command line prints its text alone and exits with 1."""


class ParameterError(MoeCompressError):
    """A parameter has a value the stage cannot work with."""


class DataError(MoeCompressError):
    """Demonstrations, calibration text or benchmark items are missing or not what they must be."""


class CheckpointError(MoeCompressError):
    """A checkpoint folder is incomplete, inconsistent or unsafe to read."""


class UnsupportedModelError(MoeCompressError):
    """The checkpoint's architecture is one whose experts cannot be told apart from its files."""


class ResourceError(MoeCompressError):
    """Memory or disk does not suffice for what was asked."""


class StatisticsError(MoeCompressError):
    """Expert statistics break an invariant or do not belong together."""


class PlanError(MoeCompressError):
    """A compression plan does not fit the layout it was made for."""


class PluginError(MoeCompressError):
    """A name asks for a plugin that is not in its folder."""


class EvaluationError(MoeCompressError):
    """An evaluation result is missing, incomplete or not a number."""


class NotFiniteError(EvaluationError):
    """A model holds or gives what is no finite number, so that nothing measured of it means anything."""


class GateFailedError(MoeCompressError):
    """A validation gate was not passed, so nothing is released."""


class RegistryError(MoeCompressError):
    """The model registry refused a request or holds something inconsistent."""


class RegistryAwayError(RegistryError):
    """The tracking server or its store does not answer; the same call may succeed later."""
