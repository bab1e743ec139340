"""A base class for modules whose `help()` shows their own members, without the hundred that `nn.Module` has."""

from abc import ABCMeta

from torch import nn


class ShortHelp(ABCMeta):
    """Metaclass that leaves the members of `nn.Module` out of `dir()` of a class, and so out of `help()`.

    It is an ABCMeta, so that a subclass can also have `abc.ABC` or a protocol as a base.
    """

    def __dir__(cls) -> list[str]:
        own = {name for base in cls.__mro__ if base not in (nn.Module, object) for name in vars(base)}
        return sorted(own - {"__abstractmethods__", "_abc_impl"})


class ShortHelpModule(nn.Module, metaclass=ShortHelp):
    """An `nn.Module` with a short `help()`. The instance offers all members for completion."""

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(nn.Module)})
