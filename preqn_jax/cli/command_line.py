"""The command line: ``--config=<name>``, and a flag ``--config.<path>=value`` for every field of the configuration."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags, logging

from preqn_jax import settings
from preqn_jax.training import presets
from preqn_jax.training.config import Config, check_config
from preqn_jax.types import NonFiniteError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_with_config(main: Callable[[Config], int]) -> None:
    """Runs ``main(config)`` with the configuration given on the command line; its result is the exit code.

    A SettingError, whenever it is raised, ends the program with a one-line message and exit code 2.
    """
    try:
        _define(_config_name(sys.argv), sys.argv)
    except settings.SettingError as error:
        _fail(error)
    run(lambda: main(_read()))


def run(main: Callable[[], int]) -> None:
    """Like :func:`run_with_config`, for programs that have no configuration and define all their flags themselves."""

    def guarded(_: list[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax and JAX log a lot
        try:
            return main()
        except settings.SettingError as error:
            return _fail(error)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            print(f"error: {error.strerror}: {error.filename or 'a file'} cannot be written", file=sys.stderr)
            return 1
        except NonFiniteError as error:  # raised by an environment in a program that only evaluates
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception:
            if line := _missing_platform():
                return _fail(line)
            raise

    app.run(guarded, flags_parser=_parse)


def _missing_platform() -> str | None:
    """An error message if JAX cannot use the platform in JAX_PLATFORMS, else None."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except Exception as error:  # an AssertionError too, as of JAX 0.10.2
        reason = f" ({settings.first_line(error)})" if str(error) else ""
        return (f"JAX_PLATFORMS={platforms} cannot be used{reason}; allowed: cpu, or the platform of an accelerator "
                "that JAX finds here")  # fmt: skip
    return None


def _define(name: str, argv: list[str]) -> None:
    """Defines the flags: the fields of the configuration with this name, and the options that ``argv`` contains."""
    flags.DEFINE_string("config", presets.DEFAULT, f"<agent>_<environment>; allowed: {', '.join(presets.names())}")
    for leaf in settings.leaves(presets.get_config(name)):
        flags.DEFINE_string(f"config.{leaf.path}", settings.spell(leaf.value), settings.describe(leaf))
        if isinstance(leaf.value, settings.Options):
            for flag in _flags_below(f"config.{leaf.path}.", argv):
                flags.DEFINE_string(flag, None, settings.describe(leaf))


def _flags_below(prefix: str, argv: list[str]) -> list[str]:
    """The names of the flags on the command line that begin with ``prefix``."""
    given = (argument.lstrip("-").partition("=")[0] for argument in argv if argument.startswith("-"))
    return list(dict.fromkeys(flag for flag in given if flag.startswith(prefix) and flag != prefix))


def _config_name(argv: list[str]) -> str:
    """The value of --config, which must be known before the other flags can be defined."""
    for i, argument in enumerate(argv):
        flag, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config":
            return value or (argv[i + 1] if i + 1 < len(argv) else "")
    return presets.DEFAULT


def _read() -> Config:
    config = presets.get_config(flags.FLAGS.config)
    for name in sorted(flags.FLAGS):  # sorted, so that single options override the JSON object of all options
        if name.startswith("config.") and flags.FLAGS[name].present:
            config = presets.override(config, f"{name.removeprefix('config.')}={flags.FLAGS[name].value}")
    check_config(config)
    return config


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        ours = [name for name in flags.FLAGS if name.startswith("config")]
        programs = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
        known = ours if ours and error.flagname.startswith("config") else [*ours, *programs]
        near = settings.nearest(error.flagname, known)
        if ours and (new := settings.renamed(presets.get_config(_config_name(argv)), _path(error.flagname))):
            _fail(f"--{error.flagname} has been renamed; use --config.{new}")
        _fail(f"unknown flag --{error.flagname}; did you mean --{near}? (--helpfull lists all)")
    except flags.Error as error:
        _fail(str(error).replace("\n", " "))
    if rest[1:]:
        _fail(f"unexpected argument {rest[1]!r}; flags are written --name=value (--helpfull lists all)")
    return rest


def _path(flag: str) -> str:
    """The path of the field that a flag sets."""
    return flag.removeprefix("config.")


def _fail(message: object) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
