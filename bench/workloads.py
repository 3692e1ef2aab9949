"""The searches that suites measure, by network."""

from bench.cnn_peers import CNN
from bench.rnn_peers import RNN

WORKLOADS = {workload.network: workload for workload in (CNN, RNN)}
