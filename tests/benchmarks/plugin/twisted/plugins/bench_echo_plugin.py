"""The controller of the scenario ``rpc``; put this directory's grandparent on PYTHONPATH."""

from anycable_tx.providers import Provider

echo_controller = Provider("controller", "bench_echo", "bench_echo:create")
