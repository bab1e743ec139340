"""A base class for modules whose `help()` shows their own members, without the many members of `nn.Module`."""

from abc import ABCMeta

from torch import nn


class ShortHelp(ABCMeta):
    """Metaclass that removes the members of `nn.Module` from `dir()` of a class, and so from `help()`.

    The names in `_help_only_here` of a base class are removed, too. They are still shown for this base class itself,
    and for a class that defines them.

    It is a subclass of ABCMeta. So a module with this metaclass can also have `abc.ABC` or a protocol as a base class.
    """

    def __dir__(cls) -> list[str]:
        bases = [base for base in cls.__mro__ if base not in (nn.Module, object)]
        own = {
            name
            for base in bases
            for name in vars(base)
            if base is cls or name not in vars(base).get("_help_only_here", ()) and name != "_help_only_here"
        }
        return sorted(name for name in own if name == "__init__" or not name.startswith("_"))


class ShortHelpModule(nn.Module, metaclass=ShortHelp):
    """An `nn.Module` with a short `help()`. `dir()` of an object still lists all members, for tab completion."""

    def __dir__(self) -> list[str]:
        """Return the names of all members."""
        return sorted({*super().__dir__(), *dir(nn.Module)})
