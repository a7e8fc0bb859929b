"""``d2v`` itself: finding commands, exit codes, and an answer that does not wait for torch."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import d2v_plugin
from d2v_plugin.cli import main as cli
from d2v_plugin.errors import UserError


def with_command(monkeypatch, run) -> None:
    """Make ``run`` the only command, called "it"."""

    def build_parser():
        parser = argparse.ArgumentParser(prog="d2v")
        parser.add_subparsers().add_parser("it").set_defaults(run=run)
        return parser

    monkeypatch.setattr(cli, "build_parser", build_parser)


def test_every_command_file_is_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for path in Path(cli.__file__).parent.glob("[a-z]*.py"):
        if path.stem != "main" and "def add_parser" in path.read_text():
            assert path.stem.replace("_", "-") in printed


def test_help_and_version_do_not_load_torch_or_fairseq():
    code = (
        "import sys; from d2v_plugin.cli.main import build_parser; build_parser().format_help(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'fairseq', 'triton', 'matplotlib')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"d2v {d2v_plugin.__version__}\n"


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(0, 0), (1, 1), (None, 0)])
def test_exit_code_is_the_commands(monkeypatch, returned, code):
    with_command(monkeypatch, lambda args: returned)
    assert cli.main(["it"]) == code


def test_user_error_is_one_line_and_others_pass(monkeypatch, capsys):
    def user_error(args):
        raise UserError("no such file x; check the path")

    with_command(monkeypatch, user_error)
    assert cli.main(["it"]) == 2
    assert capsys.readouterr().err == "d2v: error: no such file x; check the path\n"

    def fault(args):
        raise KeyError("x")

    with_command(monkeypatch, fault)
    with pytest.raises(KeyError):
        cli.main(["it"])


def test_a_place_that_cannot_be_written_is_one_line(monkeypatch, capsys, tmp_path):
    def write(args):
        (tmp_path / "missing" / "file").write_text("")

    with_command(monkeypatch, write)
    assert cli.main(["it"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("d2v: error: ") and "missing/file: No such file or directory; check this path" in error
    assert error.count("\n") == 1


def test_interrupt(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    with_command(monkeypatch, interrupted)
    assert cli.main(["it"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_env_names_versions_and_user_dir(capsys):
    assert cli.main(["env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["d2v-plugin"] == d2v_plugin.__version__
    assert lines["torch"][0].isdigit()
    assert lines["fairseq-fixed"] == "0.12.3.1"
    assert Path(lines["user_dir"], "tasks").is_dir()


def test_env_on_a_package_that_is_missing_or_another():
    from d2v_plugin.cli.env import package_version

    assert package_version("no-such-distribution") == "not installed"
