"""Providers that misbehave on purpose, for tests of the process; put this directory's grandparent on PYTHONPATH."""

from anycable_tx.providers import Provider

asyncio_pubsub = Provider("pubsub", "rigged_asyncio", "rigged:AsyncioBus", needs_asyncio=True)
failing_pubsub = Provider("pubsub", "rigged_failing", "rigged:FailingBus")
surprising_pubsub = Provider("pubsub", "rigged_surprising", "rigged:SurprisingBus")
hanging_pubsub = Provider("pubsub", "rigged_hanging", "rigged:HangingBus")
hasty_pubsub = Provider("pubsub", "rigged_hasty", "rigged:HastyBus")
talking_pubsub = Provider("pubsub", "rigged_talking", "rigged:TalkingBus")
stuck_controller = Provider("controller", "rigged_stuck", "rigged:Stuck")
slow_broker = Provider("broker", "rigged_slow", "rigged:SlowBroker")
unloadable_broker = Provider("broker", "rigged_unloadable", "rigged:no_such_thing")
