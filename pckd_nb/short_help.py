"""A base class for modules whose `help()` shows their own members, without the many members of `nn.Module`."""

from abc import ABCMeta

from torch import nn


class ShortHelp(ABCMeta):
    """Metaclass that removes the members of `nn.Module` from `dir()` of a class, and so from `help()`.

    It is a subclass of ABCMeta. So a module with this metaclass can also have `abc.ABC` or a protocol as a base class.
    """

    def __dir__(cls) -> list[str]:
        own = {name for base in cls.__mro__ if base not in (nn.Module, object) for name in vars(base)}
        return sorted(name for name in own if name == "__init__" or not name.startswith("_"))


class ShortHelpModule(nn.Module, metaclass=ShortHelp):
    """An `nn.Module` with a short `help()`. `dir()` of an object still lists all members, for tab completion."""

    def __dir__(self) -> list[str]:
        """Return the names of all members."""
        return sorted({*super().__dir__(), *dir(nn.Module)})
