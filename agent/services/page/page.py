"""What the screens of the operator's page share: the agent, its history, pictures and so on."""

from dataclasses import dataclass

from agent.child import AgentEnd
from agent.services.page.board import Board
from agent.services.page.doctor import Doctor
from agent.services.page.history import History
from agent.services.page.jobs import Jobs
from agent.services.page.labels import Labels
from agent.services.page.looks import Looks
from agent.services.page.now import Now
from agent.services.page.pictures import Pictures
from agent.services.page.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Site):
    """Handed to every screen; `agent`'s setup has the settings."""

    agent: AgentEnd
    history: History
    pictures: Pictures
    labels: Labels
    doctor: Doctor
    jobs: Jobs
    looks: Looks
    now: Now
    board: Board
