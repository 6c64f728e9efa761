"""Descriptions of what the files of a run hold, for docs/reference.md, which tools/make_reference.py makes from them."""

from __future__ import annotations

from sela_tf.runs.names import (
    CHECKPOINTS,
    FLAGS,
    GALLERIES,
    LABELS,
    LEFT_OUT,
    LOCK,
    METRICS,
    NAMES,
    NETWORK,
    PAGE,
    PICTURE,
    PROBES,
    PROBES_LEFT_OUT,
    REPORT,
    RESULTS,
    TENSORBOARD,
    TIMINGS,
    WEIGHTS,
)

RUN_DIRECTORY = {
    FLAGS: "The settings of the run, as a flagfile: the first file that is written.",
    CHECKPOINTS: "The state of the training at its start, every `monitor_epochs` epochs and every `checkpoint_minutes`. The same command continues "
    "from the newest one.",
    METRICS: "The course of the training, one JSON object a line. A repetition of the run gives the same numbers.",
    TIMINGS: "Seconds and images a second in the same form, which differ from run to run; also the doctor's finding `waiting`.",
    TENSORBOARD: "The course of the training for TensorBoard, with histograms.",
    NETWORK: "The network that the run has finished, in words: its layers, the shape of its images, its settings, and the digests of its weights "
    "and labels, which become the run's when this file is written.",
    WEIGHTS: "The weights of the network. `sela_tf.load_run(DIR)` builds the `keras.Model` from both files.",
    LABELS: "The cluster of every training image under each head, and the potentials that label new images.",
    RESULTS: "The figures of the trained network beside the untrained one, raw pixels and chance. It exists when the training is finished.",
    PAGE: "The page of the run, which a browser opens from disk: its figures, clusters, groups and images, and names to give to them.",
    PICTURE: "One picture: the course of the training, and the figures.",
    GALLERIES: "Pictures of the members of clusters, of training and of held-out images.",
    REPORT: "The numbers behind report.png, galleries/ and the overview of report.html.",
    NAMES: "The file that `python -m sela_tf.report` was last given as `names`: the next report shows its marks of single images again.",
    PROBES: "The figures that `python -m sela_tf.probe` measured.",
    LEFT_OUT: "Images of the data set that cannot be read, with the reason: `name,reason`; only if there are any.",
    PROBES_LEFT_OUT: "The same of the data set that `python -m sela_tf.probe` was given.",
    LOCK: "The process that writes the run at present.",
}
"""The files and directories of a run, in the order in which they appear."""

LABEL_ARRAYS = {
    "labels": "Integers [T, N]: the cluster of each training image under each head, by the last transport.",
    "training_labels": "Integers [T, N]: the labels of the last relabelling within training, by which the last steps learned.",
    "potentials": "float32 [T, K]: the potentials of the last transport.",
    "lam": "float32: lambda of that transport. A new image belongs to the argmax of lam log p + potentials.",
    "converged": "bool [T]: the transport of the head reached its tolerance.",
    "num_changes": "Integers [T, N]: the number of relabellings that changed the label.",
    "num_relabellings": "Integers [T]: the number of relabellings of the head.",
    "data_fingerprint": "Text: a digest of the names and the content of the training images, by which other images are refused.",
    "held_out_fingerprint": "Text: the same digest of the held-out images.",
    "source_rows": "Integers [N]: the row of each training image in its source.",
    "step": "Integer: the number of steps that the network had taken.",
    "weights_sha256": f"Text: the digest of {WEIGHTS} that made the labels.",
    "names": "Text [N]: the path of each image below its folder; only of sources whose images have names.",
    "cluster_names": "Text [T, K]: the name that was given to each cluster, empty where there is none; only once clusters were named.",
}
"""The arrays of labels.npz, of T heads, K clusters and N training images."""

RESULT_KEYS = {
    "trained": "Figures of the trained network on the held-out images.",
    "untrained": "The same figures of the network before its first step, with moving statistics taken from training images.",
    "raw_pixels": "The same figures of the pixels themselves, at most 16 x 16 of them, with k-means for clusters; on at most 2,000 held-out images.",
    "chance": "The same figures without any knowledge: the share of the largest class, and random clusters of equal size.",
    "training_labels": "Agreement of the labels of the last transport with the classes of the training images.",
    "random_clusters": "Agreement of the trained network's clusters, dealt to the images at random, with the classes: chance for these sizes.",
    "intervals": "95 % intervals [from, to] of the figures, by the names of both: Wilson's of shares, else 1.96 standard deviations of 200 "
    "resamples of the images.",
    "compared": "The trained network against `untrained` and `raw_pixels` on the same images: `difference`, its `interval`, `outcome` (better, "
    "worse, no difference seen), and `p` of McNemar's exact test. AMI and ARI: mean of the heads.",
    "without_classes": "The verdict that needs no classes: `outcome` (worked, not clear, did not work), `reason`, `protocol`; the measures of "
    "`trained`, `untrained` and `raw_pixels`; `images`.",
    "transport": "`converged`, `marginal_error` and `num_iterations` of the last transport: lists of T values.",
    "config": "The settings of the run: the flags by name.",
    "data": "`num_training_images`, `num_held_out_images`, `num_classes`, `image_shape`, and `mean` and `variance` of the channels. Where "
    "changed data were accepted (`accept_changed_data`), also `changed_while_training`: the numbers of changed `training_images` and "
    "`held_out_images`, and true for changed `classes` and for each file that was edited.",
    "network": "The network that is judged, as network.json has it: `step`, `weights_sha256`, `labels_sha256`.",
    "continued": "Only of a run with `continue_from`: `num_added`, `num_removed` and `num_kept` training images; `num_moved`, the kept ones that "
    "changed their cluster, and `num_moved_at_start`, those of them that the first labels moved, a value for each head; `clusters`, for each "
    "head the twelve that changed most, where before - removed - left + came + new = after.",
}
"""The keys of results.json."""

FIGURE_KEYS = {
    "knn": "Share of the held-out images whose class is found by the k nearest training images: k = 10, cosine, weighted votes.",
    "linear_probe": "Share of the held-out images whose class a logistic regression on the embedding finds.",
    "nmi": "Normalised mutual information of clusters and classes: a list with a value for each head, as the following.",
    "ami": "Mutual information adjusted for chance: random clusters have 0.",
    "ari": "Rand index adjusted for chance.",
    "hungarian": "Accuracy of the best assignment of one cluster to each class.",
    "purity": "Share of a cluster's most frequent class, the mean over the clusters in use.",
    "entropy": "Entropy of the classes in a cluster in nats, the mean over the clusters in use.",
    "clusters_used": "Number of clusters that have an image.",
    "protocol": "How the figures were taken, in words.",
    "reason": "The reason why figures are null; only if they are.",
}
"""The keys of each of the objects of results.json that hold figures."""

STABILITY_KEYS = {
    "view_agreement": "Adjusted mutual information of the clusters of two random training views of an image, mean of the heads: 1 for the same "
    "clusters, 0 for chance and for a collapse.",
    "neighbour_stability": "Share of the 10 nearest training images that two views of an image have in common, corrected for that of two "
    "different images: `(neighbours_shared - neighbours_by_chance) / (1 - neighbours_by_chance)`.",
    "head_agreement": "Adjusted mutual information of each head's clusters with the next head's; null for one head.",
    "neighbours_shared": "The share before the correction.",
    "neighbours_by_chance": "The share of two different images.",
    "effective_clusters": "Exponential of the entropy of the clusters' sizes: K for equal clusters, 1 for a collapse; a list, one a head.",
}
"""The keys of each network in "without_classes" of results.json."""

METRIC_ROWS = {
    "first_labels": "At the start, for each head: how the first labels agree with the classes. They are random, but in a run with "
    "`continue_from`.",
    "relabel": "At each relabelling, for each head: the transport, the objective E(p, q) before and after it, the share of labels that "
    "changed, the sizes of the clusters, and the agreement with the classes, where they are known.",
    "train": "Every `log_every_steps` steps: `loss` and `learning_rate`.",
    "epoch": "At the end of each epoch: the mean `loss`; every `monitor_epochs` also `knn`, where classes are known, and the state of the clusters.",
    "warning": "A finding of the doctor: `diagnosis`, and a `message` that says what to change. The finding `waiting` is in timings.jsonl.",
}
"""The kinds of rows of metrics.jsonl. Each row has `kind` and `step`."""
