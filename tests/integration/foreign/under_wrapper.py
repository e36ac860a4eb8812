"""Run in the units' environment: answers cases on stdin through Seldon's real wrapper, each class in a fresh instance.

A case is [class, parameters, [[path, message or null], ...]]; the answer is [[status, body], ...] for each case.
"""

import json
import os
import sys

os.environ.update(PREDICTIVE_UNIT_ID="node", PREDICTIVE_UNIT_IMAGE="image:1")

import examples  # type: ignore[import-not-found]
from seldon_core.metrics import SeldonMetrics  # type: ignore[import-not-found]
from seldon_core.wrapper import get_rest_microservice  # type: ignore[import-not-found]

answers = []
for name, parameters, calls in json.load(sys.stdin):
    component = getattr(examples, name)(**parameters)
    if hasattr(component, "load"):
        component.load()
    client = get_rest_microservice(component, SeldonMetrics()).test_client()
    told = []
    for path, message in calls:
        answer = client.get(path) if message is None else client.post(path, json=message)
        told.append([answer.status_code, answer.get_json()])
    answers.append(told)
json.dump(answers, sys.stdout)
