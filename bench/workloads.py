"""The searches that suites measure, by network, and with them other choices of peers."""

from bench.cnn_peers import CNN, MEMORY
from bench.rnn_peers import RNN

WORKLOADS = {workload.network: workload for workload in (CNN, RNN)}
MEASURED = {**WORKLOADS, MEMORY.network: MEMORY}
