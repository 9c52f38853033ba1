// Drives the official clients by JSON lines: an order a line on standard input, events and answers on standard output.

import { createInterface } from 'node:readline'
import WebSocket from 'ws'

const clients = {}

const say = event => process.stdout.write(JSON.stringify(event) + '\n')

// @anycable/core

async function openCore({ client, url, protocol, reconnect, token, fresh, options }) {
  const { createCable } = await import('@anycable/core')
  const cable = createCable(url, {
    protocol,
    websocketImplementation: WebSocket,
    reconnectStrategy: () => reconnect * (0.5 + Math.random()),
    logLevel: 'error',
    ...(token ? { auth: { token } } : {}),
    ...(fresh ? { tokenRefresher: async transport => transport.setToken(fresh) } : {}),
    ...options
  })
  let connection = 0
  cable.on('connect', ({ reconnect, restored }) => {
    say({ event: 'connected', client, connection: ++connection, restored, reconnect, sid: cable.sessionId })
  })
  cable.on('disconnect', err => say({ event: 'cut', client, connection, reason: err && err.reason }))
  cable.on('close', err => say({ event: 'closed', client, connection, reason: err && err.reason }))
  clients[client] = { cable, channels: {} }
  const connected = cable.connect()
  await (fresh ? connected.catch(() => {}) : connected)
}

function subscribeCore({ client, stream, channel: name }) {
  const { cable, channels } = clients[client]
  const channel = name ? cable.subscribeTo(name, { room: stream }) : cable.streamFrom(stream)
  const about = { client, identifier: channel.identifier, stream }
  channels[stream] = channel
  channel.on('connect', ({ restored }) => say({ event: restored ? 'kept' : 'subscribed', ...about }))
  channel.on('disconnect', () => say({ event: 'interrupted', ...about }))
  channel.on('close', err => say({ event: 'ended', ...about, reason: err && err.reason }))
  channel.on('message', (message, meta) => say({ event: 'received', ...about, message, ...meta }))
  channel.on('info', ({ type }) => say({ event: type, ...about }))
  channel.on('presence', message => say({ event: 'presence', ...about, message }))
  return channel.ensureSubscribed()
}

// @rails/actioncable, which expects a few things of a browser

async function openRails({ client, url }) {
  globalThis.addEventListener ||= () => {}
  globalThis.removeEventListener ||= () => {}
  globalThis.document ||= { visibilityState: 'visible' }
  const { default: ActionCable } = await import('@rails/actioncable')
  ActionCable.adapters.WebSocket = WebSocket
  ActionCable.ConnectionMonitor.staleThreshold = 2
  const consumer = ActionCable.createConsumer(url)
  clients[client] = { consumer, channels: {} }
}

function subscribeRails({ client, stream, channel: name }) {
  const { consumer, channels } = clients[client]
  const params = name ? { channel: name, room: stream } : { channel: '$pubsub', stream_name: stream }
  const about = { client, identifier: JSON.stringify(params), stream }
  return new Promise((resolve, reject) => {
    channels[stream] = consumer.subscriptions.create(params, {
      connected() {
        say({ event: 'subscribed', ...about })
        resolve()
      },
      disconnected() {
        say({ event: 'interrupted', ...about })
      },
      rejected() {
        say({ event: 'ended', ...about, reason: 'rejected' })
        reject(new Error('rejected'))
      },
      received(message) {
        say({ event: 'received', ...about, message })
      }
    })
  })
}

const orders = {
  open: order => (order.library === 'rails' ? openRails(order) : openCore(order)),
  subscribe: order => (clients[order.client].consumer ? subscribeRails(order) : subscribeCore(order)),
  unsubscribe({ client, stream }) {
    const channel = clients[client].channels[stream]
    return channel.unsubscribe ? channel.unsubscribe() && undefined : channel.disconnect()
  },
  perform: ({ client, stream, action, data }) => {
    clients[client].channels[stream].perform(action, data)
  },
  whisper: ({ client, stream, data }) => clients[client].channels[stream].whisper(data),
  join: ({ client, stream, id, info }) => clients[client].channels[stream].presence.join(id, info),
  leave: ({ client, stream }) => clients[client].channels[stream].presence.leave(),
  present: ({ client, stream }) => clients[client].channels[stream].presence.info(),
  close({ client }) {
    const { cable, consumer } = clients[client]
    return cable ? cable.disconnect() : consumer.disconnect() && undefined
  }
}

createInterface({ input: process.stdin })
  .on('line', async line => {
    const order = JSON.parse(line)
    try {
      say({ answer: order.number, value: await orders[order.do](order) })
    } catch (err) {
      say({ answer: order.number, error: String((err && err.message) || err), reason: err && err.reason })
    }
  })
  .on('close', () => process.exit(0))
