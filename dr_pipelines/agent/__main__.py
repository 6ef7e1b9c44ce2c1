"""`python -m dr_pipelines.agent --service database`: the agent, configured by the environment."""

import argparse
import sys

from dr_pipelines.agent.serving import serve


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dr_pipelines.agent",
        description="Ship the log of a database to the backup repository, until SIGTERM.",
        epilog="Reads DR_REPOSITORY, DR_SPOOL__<SERVICE> and DR_DSN__<SERVICE>; logs lines of JSON to standard error.",
    )
    parser.add_argument("--service", default="database", help="the service of the recovery plan (database)")
    parser.add_argument("--sandbox", metavar="NAME", help="use the repository NAME inside the repository, for drills")
    parser.add_argument("--stream", action="store_true", help="take the log from the server as it is written")
    arguments = parser.parse_args()
    return serve(arguments.service, sandbox=arguments.sandbox, stream=arguments.stream)


if __name__ == "__main__":
    sys.exit(_main())
