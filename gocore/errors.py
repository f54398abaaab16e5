"""What can go wrong between Python and the Go core, by whose fault it is.

GoCoreError
├── CoreMissing      the library is not there, cannot be loaded, or belongs to another version of this program
├── CoreForked       the process forked after the library was loaded: a Go runtime does not survive that
├── BadArgument      a pointer, length, stride, slot or flag; nothing was changed
├── BadPlan, BadProfile, BadModel
├── BadHandle        closed, or never given out
├── CoreBusy         another call works on the arena
├── NoRuntime        libonnxruntime is missing or unusable
└── CorePanic        a bug in the core; it was stopped at the boundary
"""


class GoCoreError(Exception):
    """The Go core refused or failed; the message names the value and the limit."""


class CoreMissing(GoCoreError):
    """There is no usable library; the message says why and how to get one."""


class CoreForked(GoCoreError):
    """This process forked after it had loaded the library."""


class BadArgument(GoCoreError):
    """An argument that cannot be used. Nothing was changed."""


class BadPlan(GoCoreError):
    """Bytes that are no plan, or one that this core cannot run."""


class BadProfile(GoCoreError):
    """Bytes that are no profile of the plan."""


class BadModel(GoCoreError):
    """A model that cannot be loaded, does not fit or failed."""


class BadHandle(GoCoreError):
    """A handle that is closed or was never given out."""


class CoreBusy(GoCoreError):
    """Another call works on the arena."""


class NoRuntime(GoCoreError):
    """libonnxruntime is missing, unusable or not open."""


class CorePanic(GoCoreError):
    """A panic inside the core. The process goes on; what the call was to change may be half changed."""
