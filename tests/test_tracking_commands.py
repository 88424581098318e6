"""What is said of kept entries: what was sent, what was made, what was refused, and what waits and why."""

from pathlib import Path

from moe_compress.cli import exit_code
from moe_compress.registry.delivery import Delivery
from moe_compress.tracking_commands import SERVER_AWAY, describe


def test_everything_sent_is_said_in_two_lines():
    delivery = Delivery(Path("kept"), sent=7, registered=["moe-medical version 3 (alias candidate)"])
    assert describe(delivery) == [
        "Sent to the tracking server, kept while it was away: 7.",
        "Registered as moe-medical version 3 (alias candidate).",
    ]


def test_what_waits_is_said_with_its_reason_and_the_command():
    left = [{"kind": "run"}, {"kind": "registration", "model_name": "moe-medical"}]
    refused, waits, model = describe(
        Delivery(Path("kept"), left=left, reason="it is away", refused=["wrong value"])
    )
    assert refused == "Refused, and put aside in kept/refused: wrong value"
    assert waits == (
        "2 entries are kept in kept, because it is away; kedro tracking sync sends them, and so does the next run."
    )
    assert model == (
        "The checkpoint for moe-medical is complete and passed its gates, but is not registered; "
        "kedro tracking sync registers it."
    )


def test_a_run_whose_registration_was_refused_or_waits_does_not_end_well():
    waits = [{"kind": "registration", "model_name": "moe-medical"}]
    assert [exit_code(None), exit_code(Delivery(Path("kept"), refused=["wrong value"]))] == [0, 0]
    assert exit_code(Delivery(Path("kept"), left=waits)) == SERVER_AWAY
    assert exit_code(Delivery(Path("kept"), left=waits, refused_registrations=["moe-medical"])) == 1
