"""Opens what the page needs, from what the agent has told."""

from pathlib import Path
from typing import Final

from agent.child import AgentEnd
from agent.record.evidence_files import EvidenceIndex
from agent.services.page.access import USERS, Access
from agent.services.page.board import Board
from agent.services.page.doctor import Doctor
from agent.services.page.history import History
from agent.services.page.jobs import Jobs
from agent.services.page.labels import Labels
from agent.services.page.looks import Looks
from agent.services.page.now import Now
from agent.services.page.page import Page
from agent.services.page.pictures import Pictures
from agent.services.page.screens import screens
from agent.services.page.site import templates
from agent.services.page.texts import Texts

HISTORY: Final = "history.sqlite"


def opened_page(agent: AgentEnd) -> Page:
    """The page of this agent."""
    setup, texts = agent.setup, Texts()
    folder = Path(setup["folder"])
    history = History(folder / HISTORY, near=setup["near"])
    kept = setup["evidence"]
    pictures = Pictures(
        agent, None if kept is None else EvidenceIndex(Path(kept), setup["agent_id"])
    )
    now, made = Now(history, tuple(setup["shifts"])), templates(texts, screens())
    return Page(
        agent=agent,
        history=history,
        pictures=pictures,
        access=Access(folder / USERS, idle_s=setup["idle_s"]),
        doctor=Doctor(None if (file := setup["config_file"]) is None else Path(file)),
        jobs=Jobs(folder / "retrain"),
        labels=Labels(agent, history, pictures, Path(setup["labelled"])),
        looks=Looks(history, pictures),
        now=now,
        board=Board(now, pictures, made),
        texts=texts,
        screens=screens(),
        templates=made,
    )
