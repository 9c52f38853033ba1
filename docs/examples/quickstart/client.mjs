// Prints what is published to the stream "chat". Enter cuts the network, Enter again brings it back.
import { createInterface } from 'node:readline'
import { createCable } from '@anycable/core'
import WebSocket from 'ws'

const cable = createCable(process.argv[2] ?? 'ws://localhost:8080/cable', {
  websocketImplementation: WebSocket,
  protocol: 'actioncable-v1-ext-json',
  reconnectStrategy: () => 3_600_000 // stay offline until Enter is pressed
})
cable.on('connect', ({ reconnect, restored }) =>
  console.log(!reconnect ? 'connected' : restored ? 'reconnected, session restored' : 'reconnected, new session')
)
cable.on('disconnect', () => console.log('offline'))

const chat = cable.streamFrom('chat')
chat.on('message', (message, meta) => console.log(`${meta.offset}: ${JSON.stringify(message)}`))

createInterface({ input: process.stdin }).on('line', () => {
  if (cable.state === 'connected') cable.transport.ws.terminate()
  else cable.monitor.reconnectNow()
})
