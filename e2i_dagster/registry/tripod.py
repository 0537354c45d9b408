"""The items of TRIPOD+AI, and which section of a dossier answers each.

Source: Collins GS et al., TRIPOD+AI statement, BMJ 2024;385:e078378 (27 items with their parts; the wording here is
short and ours). What no pipeline can know, such as funding, is said to be missing and has to be added by its authors.
"""

from __future__ import annotations

from typing import NamedTuple


class ReportingItem(NamedTuple):
    """One item: what is asked, and the dossier's sections that answer it; none: people have to."""

    number: str
    topic: str
    asks: str
    sections: tuple[str, ...] = ()
    missing: str = ""


_AUTHORS = "Not known to the pipeline; to be written by the authors."

ITEMS: tuple[ReportingItem, ...] = (
    ReportingItem("1", "Title", "Name the study as one of a prediction model, population and outcome.", ("protocol",)),
    ReportingItem("2", "Abstract", "Abstract by the TRIPOD+AI list for abstracts.", (), _AUTHORS),
    ReportingItem("3a", "Background", "Healthcare context and existing models.", (), _AUTHORS),
    ReportingItem("3b", "Background", "Target population, purpose and intended users.", ("protocol",)),
    ReportingItem("3c", "Background", "Known health inequalities between groups.", (), _AUTHORS),
    ReportingItem("4", "Objectives", "Objectives, and whether a model is developed or validated.", ("protocol",)),
    ReportingItem("5a", "Data", "Sources of data for training and evaluation, and why they represent.", ("data",)),
    ReportingItem("5b", "Data", "Dates of the data: accrual and end of follow-up.", ("participants",)),
    ReportingItem("6a", "Participants", "Setting, number and place of centres.", (), _AUTHORS),
    ReportingItem("6b", "Participants", "Eligibility criteria.", ("participants",)),
    ReportingItem("6c", "Participants", "Treatments received, and how they were handled.", ("features",)),
    ReportingItem("7", "Data preparation", "Pre-processing and quality checks, also between groups.", ("quality",)),
    ReportingItem("8a", "Outcome", "The outcome, its time and why it was chosen.", ("protocol",)),
    ReportingItem("8b", "Outcome", "Who assessed a subjective outcome.", (), "The outcome is read from records."),
    ReportingItem("8c", "Outcome", "Blinding of the outcome's assessment.", (), "The outcome is read from records."),
    ReportingItem("9a", "Predictors", "Choice of the initial predictors.", ("features",)),
    ReportingItem("9b", "Predictors", "Definition and time of measurement of each predictor.", ("features",)),
    ReportingItem("9c", "Predictors", "Who assessed subjective predictors.", (), _AUTHORS),
    ReportingItem("10", "Sample size", "How the size was arrived at.", ("protocol", "splits")),
    ReportingItem("11", "Missing data", "How missing values were handled.", ("training",)),
    ReportingItem("12a", "Analysis", "How data were used and split, for which purpose.", ("splits",)),
    ReportingItem("12b", "Analysis", "How predictors were handled in the model.", ("features", "training")),
    ReportingItem("12c", "Analysis", "Type of model, steps, tuning and internal validation.", ("tuning", "training")),
    ReportingItem("12d", "Analysis", "Differences between clusters, such as sites.", ("subgroups",)),
    ReportingItem("12e", "Analysis", "Measures of performance and how models were compared.", ("performance",)),
    ReportingItem("12f", "Analysis", "Updating of the model, such as recalibration.", ("training",)),
    ReportingItem("12g", "Analysis", "How predictions are calculated.", ("training",)),
    ReportingItem("13", "Class imbalance", "Methods against imbalance, and recalibration after them.", ("training",)),
    ReportingItem("14", "Fairness", "Approaches to fairness between groups.", ("subgroups",)),
    ReportingItem("15", "Model output", "What the model puts out, thresholds and their reason.", ("training",)),
    ReportingItem("16", "Training, evaluation", "Differences between training and evaluation data.", ("splits",)),
    ReportingItem("17", "Ethical approval", "Approval and consent.", (), _AUTHORS),
    ReportingItem("18a", "Open science", "Funding.", (), _AUTHORS),
    ReportingItem("18b", "Open science", "Conflicts of interest.", (), _AUTHORS),
    ReportingItem("18c", "Open science", "Protocol.", ("protocol",)),
    ReportingItem("18d", "Open science", "Registration of the study.", (), _AUTHORS),
    ReportingItem("18e", "Open science", "Availability of the data.", (), _AUTHORS),
    ReportingItem("18f", "Open science", "Availability of the code.", ("data",)),
    ReportingItem("19", "Patients and public", "Their involvement.", (), _AUTHORS),
    ReportingItem("20a", "Participants", "Flow of participants and their outcomes.", ("participants", "splits")),
    ReportingItem("20b", "Participants", "Characteristics by data source and missing values.", (),
                  "The characteristics of the patients are on the page of the cohort, not in the dossier."),
    ReportingItem("20c", "Participants", "Evaluation data beside development data.", ("splits",)),
    ReportingItem("21", "Model development", "Participants and events in each analysis.", ("performance",)),
    ReportingItem("22", "Model specification", "The full model, so that it can be used.", ("training", "identity")),
    ReportingItem("23a", "Model performance", "Estimates with intervals, also of groups.", ("performance",)),
    ReportingItem("23b", "Model performance", "Differences of performance between clusters.", ("subgroups",)),
    ReportingItem("24", "Model updating", "Results of updating.", (), "This version was trained anew, not updated."),
    ReportingItem("25", "Interpretation", "Interpretation, with fairness and earlier studies.", (), _AUTHORS),
    ReportingItem("26", "Limitations", "Limitations: sample, bias, overfitting, missing data.", (), _AUTHORS),
    ReportingItem("27a", "Usability", "How poor input is handled when the model is used.", ("training",)),
    ReportingItem("27b", "Usability", "Interaction and expertise that users need.", (), _AUTHORS),
    ReportingItem("27c", "Usability", "Next steps: applicability and generalisability.", ("external_validation",)),
)  # fmt: skip

#: Questions of a model card (Mitchell et al., Model Cards for Model Reporting, 2019), in the same form.
MODEL_CARD: tuple[ReportingItem, ...] = (
    ReportingItem("Model details", "", "Name, version, date, type, training.", ("identity", "training")),
    ReportingItem("Intended use", "", "Primary use and users; uses out of scope.", ("protocol",)),
    ReportingItem("Factors", "", "Groups, instruments and environments that matter.", ("subgroups",)),
    ReportingItem("Metrics", "", "Measures, thresholds and how uncertainty was estimated.", ("performance",)),
    ReportingItem("Evaluation data", "", "Which data, why, and their preparation.", ("splits", "quality")),
    ReportingItem("Training data", "", "Which data.", ("data", "participants")),
    ReportingItem("Quantitative analyses", "", "Results for groups, alone and crossed.", ("subgroups",)),
    ReportingItem("Ethical considerations", "", "Sensitive data, risks, mitigations.", (), _AUTHORS),
    ReportingItem("Caveats and recommendations", "", "What else a user has to know.", (), _AUTHORS),
)
