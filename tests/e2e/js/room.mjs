// Opens an example application in Chromium, by JSON lines, with the installed packages in place of the CDN's.

import { readFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'

const root = fileURLToPath(new URL('node_modules/', import.meta.url))
const say = event => process.stdout.write(JSON.stringify(event) + '\n')
const fail = reason => say({ event: 'failed', client: 'page', reason: String(reason) })

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking']
})
const page = await browser.newPage()
page.on('pageerror', fail)
let confirmed = false
page.on('websocket', socket =>
  socket.on('framereceived', ({ payload }) => (confirmed ||= payload.includes('confirm_subscription')))
)

// The version that a page asks for has to be the installed one.
await page.route('https://cdn.jsdelivr.net/npm/**', async route => {
  const [, name, version, path] = route.request().url().match(/npm\/((?:@\w+\/)?\w+)@([\d.]+)\/(.+)$/)
  const installed = JSON.parse(await readFile(`${root}${name}/package.json`)).version
  if (installed !== version) return route.abort(fail(`${name}: ${version} is asked for, ${installed} is installed`))
  await route.fulfill({
    contentType: 'text/javascript',
    headers: { 'Access-Control-Allow-Origin': '*' },
    body: await readFile(`${root}${name}/${path}`)
  })
})

const until = async condition => {
  while (!(await condition())) await new Promise(resolve => setTimeout(resolve, 20))
}

const orders = {
  open: ({ url }) => page.goto(url).then(() => null),
  async fill({ field, value }) {
    await page.locator(`input[name=${field}]`).fill(value)
    await page.locator(`input[name=${field}]`).press('Enter')
  },
  wait_for_the_subscription: () => until(() => confirmed),
  wait_for: ({ text }) => until(async () => (await page.locator('ol > li').allTextContents()).at(-1) === text)
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
