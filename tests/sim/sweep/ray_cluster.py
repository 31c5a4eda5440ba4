"""A Ray cluster of several nodes on this machine, in a process of its own.

Prints its address when it is there (`address HOST:PORT`). A line on its standard input ends one
node, as a power cut would; the end of its input ends it all.
"""

import sys

from ray.cluster_utils import Cluster

STORE_BYTES = 80 * 1024 * 1024


def main(nodes_of_one_cpu: int) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,  # it is not to die
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 300,
                "health_check_failure_threshold": 5,
            },
        },
    )
    nodes = [
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, wait=False)
        for _ in range(nodes_of_one_cpu)
    ]
    cluster.wait_for_nodes()
    print("address", cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("ended", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
