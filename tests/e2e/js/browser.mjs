// Opens a page in Chromium, by JSON lines: an order a line on standard input, events and answers on standard output.

import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { extname, join, normalize } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'

const root = fileURLToPath(new URL('.', import.meta.url))
const types = { '.html': 'text/html', '.js': 'text/javascript' }
const say = event => process.stdout.write(JSON.stringify(event) + '\n')

const files = createServer(async (request, response) => {
  const path = normalize(new URL(request.url, 'http://files').pathname)
  try {
    const body = await readFile(join(root, path))
    response.writeHead(200, { 'Content-Type': types[extname(path)] || 'application/octet-stream' }).end(body)
  } catch {
    response.writeHead(404).end()
  }
})
await new Promise(resolve => files.listen(0, '127.0.0.1', resolve))

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync'
  ]
})
const page = await browser.newPage()
await page.exposeFunction('report', say)
page.on('pageerror', err => say({ event: 'failed', client: 'page', reason: String(err) }))
page.on('console', entry => entry.type() === 'error' && say({ event: 'complaint', client: 'page', reason: entry.text() }))
page.on('dialog', dialog => {
  say({ event: 'failed', client: 'page', reason: `a dialog: ${dialog.message()}` })
  dialog.dismiss()
})

const orders = {
  async open({ url, stream, file = 'page.html' }) {
    const query = new URLSearchParams({ cable: url, stream })
    await page.goto(`http://127.0.0.1:${files.address().port}/${file}?${query}`)
  },
  shown: () => page.locator('ol > li').allTextContents(),

  // Any page: where it is, what is done to its elements, what they say.
  // From now on one message of a stream is withheld from the page and another one comes twice, by their place.
  tamper: ({ stream, withhold, double }) =>
    page.routeWebSocket(/cable/, socket => {
      let place = 0
      socket.connectToServer().onMessage(text => {
        const { message, identifier } = JSON.parse(text)
        if (message?.n && JSON.parse(identifier).stream_name === stream) place++
        else return socket.send(text)
        if (place !== withhold) socket.send(text)
        if (place === double) socket.send(text)
      })
    }),
  visit: async ({ url }) => void (await page.goto(url)),
  fill: ({ selector, text }) => page.locator(selector).fill(text),
  click: ({ selector }) => page.locator(selector).click(),
  texts: ({ selector }) => page.locator(selector).allInnerTexts(),
  count: ({ selector }) => page.locator(selector).count(),
  wait: ({ selector, text }) => page.locator(selector, { hasText: text }).first().waitFor({ timeout: 15000 }),
  async picture({ path, width, height }) {
    await page.setViewportSize({ width, height })
    await page.evaluate(() => scrollTo(0, 0))
    await page.waitForTimeout(1500)
    await page.screenshot({ path })
  }
}

createInterface({ input: process.stdin })
  .on('line', async line => {
    const order = JSON.parse(line)
    try {
      say({ answer: order.number, value: await orders[order.do](order) })
    } catch (err) {
      say({ answer: order.number, error: String((err && err.message) || err) })
    }
  })
  .on('close', async () => {
    await browser.close()
    process.exit(0)
  })
