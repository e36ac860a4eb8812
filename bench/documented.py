"""The graph's four units as Seldon's documentation shows them: `predict(X, names, meta)` over a pandas DataFrame.

The fitted pipelines and the rules are the shipped ones; only the way of serving differs. One difference is the stock
executor's: it sends a request whole to one arm, so the router here can only look at the first row's customer.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import yaml


class Model:
    """Answers the columns of the bundle in a folder, by scikit-learn."""

    def __init__(self, bundle: str) -> None:
        folder = Path(bundle)
        declared = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.key = declared["key"]
        self.inputs = declared["inputs"]
        self.heads = declared["heads"]
        self.pipelines = joblib.load(folder / "model.joblib")
        self.columns = [self.key]
        for head in self.heads:
            self.columns += [head["score"], head["decile"]] if head["kind"] == "binary" else [head["value"], head["band"]]

    def predict(self, X: Any, names: list[str], meta: dict[str, Any] | None = None) -> Any:  # noqa: N803 - Seldon's name
        frame = pd.DataFrame(X, columns=names)
        features = self._features(frame)
        answer = pd.DataFrame({self.key: frame[self.key]})
        for head in self.heads:
            pipeline = self.pipelines[head["name"]]
            if head["kind"] == "binary":
                scores = pipeline.predict_proba(features)[:, 1]
                bins = [-np.inf, *reversed(head["edges"]), np.inf]
                answer[head["score"]] = scores
                answer[head["decile"]] = pd.cut(scores, bins, right=False, labels=range(10, 0, -1)).astype(int)
            elif head["kind"] == "regression":
                values = pipeline.predict(features)
                answer[head["value"]] = values
                answer[head["band"]] = pd.cut(values, [-np.inf, *head["edges"], np.inf], labels=head["labels"]).astype(str)
            else:
                weighted = pipeline.predict_proba(features) * np.array(head["weights"])
                answer[head["value"]] = None
                answer[head["band"]] = np.array(head["labels"])[weighted.argmax(axis=1)]
        return answer[self.columns].to_numpy(dtype=object)

    def class_names(self) -> list[str]:
        return list(self.columns)

    def _features(self, frame: pd.DataFrame) -> Any:
        """Code categories and read numbers. The wrapper hands over text where a request mixes text and numbers."""
        features = pd.DataFrame(index=frame.index)
        for each in self.inputs:
            column = frame[each["name"]]
            if each["type"] == "category":
                codes = {name: float(code) for code, name in enumerate(each["categories"])}
                text = column.astype("string").str.removesuffix(".0") if each.get("numeric_ids") else column
                features[each["name"]] = text.map(codes).astype(float).fillna(-1.0).where(column.notna(), -2.0)
            else:
                features[each["name"]] = pd.to_numeric(column, errors="coerce")
        return features.to_numpy(dtype=np.float32)


class Campaigns:
    """Adds gender and campaigns to the models' answers, by the analyst's rules."""

    def __init__(self, decision: str) -> None:
        self.rules = yaml.safe_load(Path(decision).read_text(encoding="utf-8"))
        self.genders = {decile: name for name, rule in self.rules["gender"].items() for decile in rule["deciles"]}
        self.columns: list[str] = []

    def transform_output(self, X: Any, names: list[str], meta: dict[str, Any] | None = None) -> Any:  # noqa: N803 - Seldon's name
        frame = pd.DataFrame(X, columns=names)
        frame["gender"] = frame["gender_decile"].astype(int).map(self.genders).fillna("")
        frame["campaigns"] = [self._campaigns(*row) for row in zip(frame["gender"], frame["age_band"], strict=True)]
        self.columns = list(frame.columns)
        return frame.to_numpy(dtype=object)

    def class_names(self) -> list[str]:
        return self.columns

    def _campaigns(self, gender: str, band: str) -> str:
        found = []
        for campaign in self.rules["campaigns"]:
            when = campaign["when"]
            if when.get("gender", gender) == gender and when.get("age_band", band) == band:
                found.append(str(campaign["id"]))
        return ",".join(found)


class Router:
    """Sends a tenth of the customers to the challenger, by a hash of the key."""

    def __init__(self, key: str = "device_id", salt: str = "campaigns-1", challenger: int = 1000) -> None:
        self.key, self.salt, self.challenger = key, salt, challenger

    def route(self, X: Any, names: list[str], meta: dict[str, Any] | None = None) -> int:  # noqa: N803 - Seldon's name
        customer = pd.DataFrame(X, columns=names)[self.key].iloc[0]
        digest = hashlib.sha256(f"{self.salt}:{customer}".encode()).digest()
        return int(int.from_bytes(digest[:4], "big") * 10_000 >> 32 < self.challenger)
