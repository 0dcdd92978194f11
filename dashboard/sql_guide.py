"""What the Query page teaches: the views' columns in plain words, and examples to start from. No streamlit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

VIEWS = {
    "importance": "Where the attribution of each target lies: one row a scan, target, region and sign",
    "importance_by_channel": "The same, a row for each input channel of the model, such as the sequences of an MRI",
    "agreement": "How well prediction and label agree: one row a scan and organ",
    "ablation_agreement": "Do a run’s shares rank the regions as taking each away does: one row a scan and target",
    "cases": "The scans of all cohorts with their metadata, one column each",
    "outliers": "How unusual each scan’s evidence is; filled by the Outliers page or `agg2exp outliers`",
    "lists": "Saved lists of scans",
    "runs": "What was computed, with which model and method",
}
"""View → what it holds, the most asked first."""

COLUMNS = {
    "cohort": "the set of scans",
    "run": "a model and a method over a cohort",
    "case_id": "the scan",
    "image": "its file, relative to its cohort’s folder; of several channels a file each, with `;` between",
    "channel": "the input channel, empty where attribution is not split; shares are of all channels together",
    "label": "its label map, likewise",
    "pathology_mask": "a mask of its pathology, likewise",
    "region_set": "`organs`, or the name of masks that were summed over",
    "target": "the organ whose segmentation is explained or scored",
    "region": "the organ that the attribution lies on",
    "sign": "`abs` all attribution, `pos` for, `neg` against",
    "mass": "share of the target’s attribution, 0 to 1",
    "mean": "attribution per voxel of the region",
    "voxels": "size of the region",
    "absent": "why there is no value, empty where there is one",
    "organ_mass": "share without the background",
    "mass_se": "standard error of mass, where it is known",
    "organ_mass_se": "standard error of organ_mass",
    "dice": "overlap of prediction and label, 0 to 1",
    "iou": "intersection over union, 0 to 1",
    "detector": "what measured how unusual",
    "score": "higher is more unusual",
    "flagged": "beyond what is usual",
    "ablation": "the run that took organs away",
    "rho": "Spearman’s ρ of the regions’ shares with what taking them away does",
    "regions": "that both runs have a share of",
    "list": "the list’s name",
    "model": "the network’s name",
    "method": "how attribution was computed",
    "parameters": "of the method, as JSON",
    "label_set": "names and colours of the organs",
    "values": "`sums`, or `shares` of an imported table",
    "model_hash": "SHA-256 of the weights",
    "cases": "finished scans",
    "listed": "of them, those that are in the cohort’s list",
    "damaged": "scans that do not verify",
}
"""Column → its meaning, the same in every view that has it; other columns are metadata of the scans."""


NO_ROW = "No row answers this query. Loosen a condition, or see beside the editor which views hold rows."


@dataclass(frozen=True)
class Example:
    """A query to learn from, with places for {cohort}, {run} and {target}.

    needs: metadata columns it names. empty: what no row of it means.
    """

    title: str
    lesson: str
    sql: str
    needs: tuple[str, ...] = ()
    empty: str = NO_ROW


def filled(example: Example, cohort: str, run: str, target: str) -> str:
    """The example's query about these; names are quoted as SQL texts."""
    names = {"cohort": cohort, "run": run, "target": target}
    return example.sql.format(**{name: "'" + text.replace("'", "''") + "'" for name, text in names.items()})


def on_nothing(sql: str, cohort: str, run: str, target: str) -> str:
    """What it means that a query has no answer."""
    asked = (example for example in EXAMPLES if filled(example, cohort, run, target) == sql)
    return next((example.empty for example in asked), NO_ROW)


def offered(columns: Collection[str]) -> list[Example]:
    """The examples that can be answered where the scans have these columns."""
    return [example for example in EXAMPLES if set(example.needs) <= set(columns)]


EXAMPLES = [
    Example(
        "Top regions of the target",
        "The median over scans of each region’s share: the Cohort page’s boxes as numbers.",
        """SELECT region, median(mass) AS share
FROM importance
WHERE cohort = {cohort} AND run = {run}
  AND target = {target} AND region_set = 'organs' AND sign = 'abs'
GROUP BY region ORDER BY share DESC LIMIT 12""",
    ),
    Example(
        "Which organs rest on themselves?",
        "`region = target` keeps the diagonal of the matrix: what lies on the very organ that is explained.",
        """SELECT target, median(mass) AS on_itself
FROM importance
WHERE cohort = {cohort} AND run = {run}
  AND region_set = 'organs' AND sign = 'abs' AND region = target
GROUP BY target ORDER BY on_itself DESC""",
    ),
    Example(
        "The whole matrix",
        "Two categories and a number are drawn as a heatmap. `organ_mass` is the share without the background.",
        """SELECT target, region, median(organ_mass) AS share
FROM importance
WHERE cohort = {cohort} AND run = {run} AND region_set = 'organs' AND sign = 'abs'
  AND target <> 'background' AND region <> 'background'
GROUP BY target, region""",
    ),
    Example(
        "Background share by target",
        "One row a scan and target: a box plot. Evidence on the background may be the table, or the border.",
        """SELECT case_id, target, mass AS on_background
FROM importance
WHERE cohort = {cohort} AND run = {run}
  AND region_set = 'organs' AND sign = 'abs' AND region = 'background' AND mass IS NOT NULL
ORDER BY target""",
    ),
    Example(
        "Scans that look at the lungs too much",
        "Shares add up, so the lobes can be summed; HAVING keeps scans above a threshold. Change it.",
        """SELECT case_id, sum(mass) AS on_lungs
FROM importance
WHERE cohort = {cohort} AND run = {run}
  AND target = {target} AND region_set = 'organs' AND sign = 'abs' AND region LIKE 'lung%'
GROUP BY case_id HAVING on_lungs > 0.2
ORDER BY on_lungs DESC""",
        empty="No scan is above this threshold. Lower the number behind HAVING.",
    ),
    Example(
        "Right for a reason?",
        "Dice against the share that lies on the organ itself. High and low at once is what Dice alone hides.",
        """SELECT case_id, mass AS on_itself, dice
FROM importance JOIN agreement USING (cohort, run, case_id, target)
WHERE cohort = {cohort} AND run = {run}
  AND target = {target} AND region = target AND region_set = 'organs' AND sign = 'abs'
ORDER BY on_itself""",
    ),
    Example(
        "Mean Dice by scanner",
        "JOIN brings the scans’ metadata to the results.",
        """SELECT scanner, avg(dice) AS mean_dice, count(DISTINCT case_id) AS scans
FROM agreement JOIN cases USING (cohort, case_id)
WHERE cohort = {cohort} AND run = {run} AND target <> 'background'
GROUP BY scanner ORDER BY mean_dice DESC""",
        ("scanner",),
    ),
    Example(
        "What goes with age",
        "The correlation of age with each region’s share, over scans. With few scans, chance is large.",
        """SELECT region, corr(age, mass) AS correlation, count(*) AS scans
FROM importance JOIN cases USING (cohort, case_id)
WHERE cohort = {cohort} AND run = {run}
  AND target = {target} AND region_set = 'organs' AND sign = 'abs' AND isfinite(age) AND mass IS NOT NULL
GROUP BY region HAVING isfinite(correlation) ORDER BY correlation DESC""",
        ("age",),
    ),
    Example(
        "Most unusual organs",
        "The view `outliers` has a row for each scan, target and detector; QUALIFY keeps the first of each.",
        """SELECT case_id, target, detector, score, flagged
FROM outliers
WHERE cohort = {cohort} AND run = {run}
QUALIFY row_number() OVER (PARTITION BY detector ORDER BY score DESC) <= 5
ORDER BY detector, score DESC""",
        empty="This run was not scored yet: `agg2exp outliers` does that. Another cohort at the left may have scores.",
    ),
    Example(
        "Model against model",
        "The share on the organ itself for every run of the cohort, side by side.",
        """SELECT target, run, median(mass) AS on_itself
FROM importance
WHERE cohort = {cohort} AND region_set = 'organs' AND sign = 'abs' AND region = target
GROUP BY target, run ORDER BY target, run""",
    ),
    Example(
        "For and against",
        "Attribution that raises the target’s score and that lowers it, as shares of all of it.",
        """WITH local AS (
  SELECT region, sign, mean * voxels / sum(mean * voxels) OVER (PARTITION BY case_id) AS share
  FROM importance
  WHERE cohort = {cohort} AND run = {run} AND target = {target} AND region_set = 'organs' AND sign <> 'abs')
SELECT region, sign, median(share) AS share
FROM local WHERE share IS NOT NULL GROUP BY region, sign ORDER BY share DESC""",
    ),
    Example(
        "Which organs are missing, and why",
        "An organ that is not there has no value but a reason.",
        """SELECT target, absent, count(DISTINCT case_id) AS scans
FROM importance
WHERE cohort = {cohort} AND run = {run} AND region_set = 'organs'
  AND absent IS NOT NULL AND region = target
GROUP BY target, absent ORDER BY scans DESC""",
        empty="No organ is missing in any scan of this run. Another cohort at the left may lack some.",
    ),
    Example(
        "Saved lists compared",
        "Save lists on the Cohort page; this sets their medians side by side.",
        """SELECT region, list, median(mass) AS share
FROM importance JOIN lists USING (cohort, case_id)
WHERE cohort = {cohort} AND run = {run} AND target = {target} AND region_set = 'organs' AND sign = 'abs'
GROUP BY region, list""",
        empty="This cohort has no saved list yet. The Cohort and Outliers pages save those that are shown.",
    ),
]
