"""Retrain: from labels to a better bundle, and back where it is not better."""

import importlib.util
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agent.bundle_places import previous_place, put_next
from agent.labelled import ENOUGH_DEFECTS, USES, Use, read_labelled
from agent.services.page.access import Role
from agent.services.page.jobs import Job
from agent.services.page.page import Page
from agent.services.page.screens import Action, Form, Fragment, Problem, Screen
from calibration.bound import good_parts_needed
from engine.bundle import open_bundle
from engine.errors import AtacError

_PROMISES: Final = (0.05, 0.01)


def show(page: Page, _request: Request) -> Mapping[str, object]:
    """What is labelled, what is missing, the newest training, and what is in force."""
    setup = page.agent.setup
    now = job(page)
    promotion = now["promotion"]
    assert isinstance(promotion, dict)
    product, bundle, cameras = _trained(page)
    found = read_labelled(Path(setup["labelled"]), product=product, cameras=cameras)
    counts = {use: len(found.of(use)) for use in USES}
    status = page.now.status or {}
    bundle_id = promotion["bundle_id"] or status.get("bundle_id", "")
    trained = now["job"].result if isinstance(now["job"], Job) else None
    in_force = promotion["bundles"].get((trained or {}).get("product"), bundle_id)
    return {
        **now,
        "counts": counts,
        "found": found,
        "missing": missing(page, counts),
        "is_paused": status.get("is_paused", False),
        "product": product,
        "bundle_id": promotion["bundles"].get(product, bundle_id),
        "is_in_force": trained is not None and trained["bundle_id"] == in_force,
        "has_previous": previous_place(bundle).is_dir(),
        "base": setup["training"],
    }


def _trained(page: Page) -> tuple[str | None, Path, Collection[str]]:
    """The product that the line makes, its bundle, and the cameras that share it; empty: all."""
    setup = page.agent.setup
    product = (page.now.status or {}).get("product")
    if product not in setup["products"]:
        return None, Path(setup["bundle"]), ()
    one = setup["products"][product]
    return product, Path(one["bundle"]), one["cameras"]


def missing(page: Page, counts: Mapping[Use, int]) -> list[str]:
    """What would help most, in words, the most important first."""
    say, told = page.texts.say, []
    if counts["defective"] < ENOUGH_DEFECTS:
        told.append(
            say("retrain.few_defects", n=ENOUGH_DEFECTS - counts["defective"], of=ENOUGH_DEFECTS)
        )
    for promise in _PROMISES:
        needed = good_parts_needed(max_false_reject=promise, confidence=0.95)
        if counts["calibration"] < needed:
            n = needed - counts["calibration"]
            told.append(say("retrain.few_audit", n=n, promise=f"{100 * promise:g} %"))
            break
    if page.agent.setup["training"] is None:
        told.append(say("retrain.no_base"))
    if page.agent.setup["evidence"] is None:
        told.append(say("retrain.no_evidence"))
    if importlib.util.find_spec("torch") is None:
        told.append(say("retrain.no_torch"))
    return told


def job(page: Page) -> Mapping[str, object]:
    """The newest training, and whether a bundle is coming into force."""
    told, _ = page.agent.ask("promotion_status")
    return {"job": page.jobs.newest(), "promotion": told}


def begin(page: Page, request: Request, _form: Form) -> Response:
    """Begin to train; the line has to stand, as training takes all of the machine."""
    setup = page.agent.setup
    if setup["config_file"] is None:
        raise Problem("system.no_file")
    if not (page.now.status or {}).get("is_paused", False):
        raise Problem("retrain.runs", status=409)
    arguments = ["--config", str(setup["config_file"]), "--labelled", str(setup["labelled"])]
    product, _, _ = _trained(page)
    if product is not None:
        arguments += ["--product", product]
    if setup["training"] is not None:
        arguments += ["--base", str(Path(setup["training"], product or ""))]
    if setup["backbone_weights"] is not None:
        arguments += ["--backbone-weights", str(setup["backbone_weights"])]
    if not page.jobs.begin(arguments, who=page.visitor(request).name):
        raise Problem("retrain.one", status=409)
    page.note(request, "retrain")
    return Response(headers={"HX-Redirect": "/retrain"})


def end(page: Page, request: Request, _form: Form) -> Response:
    """End the training."""
    page.jobs.end()
    page.note(request, "retrain ended")
    return Response(headers={"HX-Redirect": "/retrain"})


def pause(page: Page, request: Request, form: Form) -> Response:
    """Have the line inspect nothing, or inspect again."""
    is_pause = form.get("pause") == "yes"
    page.agent.ask("pause" if is_pause else "resume")
    page.note(request, "pause" if is_pause else "resume")
    return Response(headers={"HX-Redirect": "/retrain"})


def promote(page: Page, request: Request, form: Form) -> Response:
    """Put the trained bundle in force."""
    known, why = page.jobs.newest(), _why(form)
    if known is None or known.result is None:
        raise Problem("retrain.none", status=409)
    product = known.result.get("product")
    one = page.agent.setup["products"].get(product, page.agent.setup)
    try:
        bundle = open_bundle(known.bundle)
        put_next(bundle, Path(one["bundle"]))
    except AtacError as error:
        raise Problem("problem.agent", status=409, why=str(error)) from None
    return _changed(page, request, "promote", bundle.id, why, product)


def rollback(page: Page, request: Request, form: Form) -> Response:
    """Bring the bundle before back, of the product that was shown."""
    return _changed(page, request, "rollback", "", _why(form), form.get("product"))


def _changed(
    page: Page, request: Request, kind: str, bundle_id: str, why: str, product: str | None
) -> Response:
    page.agent.ask(
        "promotion",
        kind=kind,
        bundle_id=bundle_id,
        by=page.visitor(request).name,
        why=why,
        nonce=secrets.token_hex(8),
        product=product,
    )
    page.note(request, kind, why)
    return Response(headers={"HX-Redirect": "/retrain"})


def _why(form: Form) -> str:
    why = form.get("why", "").strip()[:500]
    if not why:
        raise Problem("problem.no_reason")
    return why


def far(page: Page, _request: Request, _form: Form) -> Fragment | Response:
    """How far training or promotion is; the whole screen once it is over."""
    values = job(page)
    known, promotion = values["job"], values["promotion"]
    assert isinstance(promotion, dict)
    if not promotion["running"] and not getattr(known, "is_running", False):
        return Response(headers={"HX-Redirect": "/retrain"})
    return Fragment(template="retrain_job.html.j2", values=values)


def kept(page: Page, _request: Request, form: Form) -> Response:
    """A page that the training has made, as a file."""
    name = form.get("page", "")
    data = page.jobs.page(name)
    if data is None:
        raise HTTPException(404)
    headers = {"content-disposition": f'attachment; filename="{Path(name).name}"'}
    return Response(data, media_type="text/html; charset=utf-8", headers=headers)


_ENGINEER: Final = Role.ENGINEER
SCREEN = Screen(
    name="retrain",
    role=_ENGINEER,
    order=45,
    show=show,
    actions={
        "begin": Action(role=_ENGINEER, do=begin),
        "end": Action(role=_ENGINEER, do=end),
        "pause": Action(role=_ENGINEER, do=pause),
        "promote": Action(role=_ENGINEER, do=promote),
        "rollback": Action(role=_ENGINEER, do=rollback),
    },
    fragments={
        "job": Action(role=_ENGINEER, do=far),
        "page": Action(role=_ENGINEER, do=kept),
    },
)
