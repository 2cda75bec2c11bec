"""`agent support`: an archive for whoever helps, without passwords and without pictures."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def support(
    *,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    out: Annotated[Path, typer.Option(help="The archive.")] = Path("support.zip"),
    is_running: Annotated[
        bool, typer.Option("--running", help="The agent runs: leave its cameras alone.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written as JSON.")
    ] = False,
) -> None:
    """Pack what agent doctor says, the configuration without passwords, and all versions.

    Example: agent support --config agent.yaml --out support.zip
    """
    from agent.doctor import examine
    from agent.support import archive
    from engine.bundle import replace_file
    from engine.errors import ConfigurationError

    findings = [asdict(finding) for finding in examine(config, is_running=is_running)]
    try:
        replace_file(out, archive(config, {"doctor.json": findings}))
    except OSError as error:
        raise ConfigurationError(
            "--out", str(out), f"cannot be written ({error.strerror})"
        ) from None
    typer.echo(json.dumps({"archive": str(out)}) if as_json else f"Written: {out}")
