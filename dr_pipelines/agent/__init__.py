"""What runs beside a database's server: it ships the spooled log to the repository and says how far that reaches."""

from dr_pipelines.agent.running import AgentOptions, run_agent
from dr_pipelines.agent.serving import serve

__all__ = ["AgentOptions", "run_agent", "serve"]
